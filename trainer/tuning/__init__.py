"""What could be set better in a YAML: its learning rate, and what makes its steps faster."""
