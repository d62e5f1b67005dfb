"""What taskq's AMQP transport and result store share: connections and frames."""
