"""RabbitMQ as a message broker of taskq."""
