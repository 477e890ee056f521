"""All HTML and figures, as pure functions of data, shared by the dashboard, notebooks and static exports."""
