"""All HTML and figures, as pure functions of data: the dashboard, notebooks and static exports show the same."""
