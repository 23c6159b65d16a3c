"""The model behind HTTP: an OpenAI-compatible server and the page that talks to it."""
