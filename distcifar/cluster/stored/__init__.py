"""Run directories at a URL: pushed as they grow, gone on with from any machine."""
