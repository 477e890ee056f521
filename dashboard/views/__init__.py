"""One file per page, each with a `page` function that draws it."""
