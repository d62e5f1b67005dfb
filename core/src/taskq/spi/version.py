"""The plugin interface's own version, apart from the kernel's releases.

``MAJOR.MINOR``: while MAJOR is 0 every MINOR may break; a plugin states the version that it was written for in its
spec.
"""

SPI_VERSION = "0.1"
COMPATIBLE_SPI = ("0.1",)
"""Interface versions that this kernel still loads."""
