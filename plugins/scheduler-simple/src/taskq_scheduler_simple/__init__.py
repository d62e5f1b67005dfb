"""The simple scheduler: schedules in memory, or in one JSON file."""
