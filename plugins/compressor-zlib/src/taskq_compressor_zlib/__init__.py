"""The zlib compressor."""
