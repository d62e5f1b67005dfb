"""The gevent pool: jobs run on greenlets."""
