"""Tests on running processes: small programs are upgraded while they run."""
