"""The papers' tables, made again with intervals beside their own numbers."""
