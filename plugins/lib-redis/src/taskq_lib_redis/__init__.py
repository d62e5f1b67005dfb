"""What taskq's Redis transport and result store share: connections, and how results are kept."""
