"""Page in the browser to try and teach a model. Only `page`, `teach_tab`, `messages` and `server` use gradio."""
