"""Amazon SQS as a message broker of taskq."""
