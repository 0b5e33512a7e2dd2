"""Shows a run and its data to people: TensorBoard, reports, features of a model, data reports."""
