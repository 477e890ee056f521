"""What an SAE is measured against."""
