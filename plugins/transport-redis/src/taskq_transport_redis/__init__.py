"""Redis and Valkey as a message broker of taskq."""
