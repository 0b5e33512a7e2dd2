"""What people look at: pictures, reports, what a model attends to, what is in the data."""
