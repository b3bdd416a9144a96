"""The documentation: pages in Markdown, and what Sphinx needs to make them into build/docs (`make docs`)."""
