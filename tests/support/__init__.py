"""What tests and the Makefile share: the environment, real servers, fixtures."""
