"""Batch prediction job runner: score CSV, JSON, Avro and Parquet files with ONNX models."""

__version__ = "0.1.0"
