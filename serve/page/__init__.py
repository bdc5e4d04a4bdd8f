"""The web page: HTML, a style sheet and JavaScript modules, served as they are, and the routes that serve them."""
