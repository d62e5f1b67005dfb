"""RabbitMQ as a way for results of taskq back to their caller."""
