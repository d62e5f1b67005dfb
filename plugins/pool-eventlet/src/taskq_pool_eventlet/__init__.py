"""The eventlet pool: jobs run on greenlets."""
