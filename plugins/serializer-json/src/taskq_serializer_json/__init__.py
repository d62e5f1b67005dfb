"""The json serializer: plain JSON for plain data, tagged objects for the rest."""
