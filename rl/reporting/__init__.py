"""Metrics, TensorBoard, the console and the progress line."""
