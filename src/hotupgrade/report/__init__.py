"""What a person sees of an upgrade: a picture of the break and a page around it.  Reads documents, knows no process."""
