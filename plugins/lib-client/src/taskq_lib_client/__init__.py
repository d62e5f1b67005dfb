"""What taskq's plugins for servers share: waiting that can be ended, and results that are pushed."""
