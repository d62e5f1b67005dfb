"""Redis and Valkey as a result store of taskq."""
