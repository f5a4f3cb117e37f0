"""What tests of every layer use; the fixtures are in tests/conftest.py."""
