"""A run's model as a file of another format: written, tested on images, described, and kept."""
