"""Streams over WebSockets: chunks in, detections and tracks out."""
