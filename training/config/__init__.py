"""The config of a training: its fields, how it is read and overridden, and YAML."""
