"""Controls that SAEs are compared with."""
