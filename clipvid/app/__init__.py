"""Page in the browser to try a model: scores, explanations and search. Only `page` and `server` use gradio."""
