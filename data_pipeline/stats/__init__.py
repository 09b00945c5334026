"""What has become of the assets of a staging folder: a table, a json object, a page."""
