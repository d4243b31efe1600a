"""The one engine that trains every learned detector."""
