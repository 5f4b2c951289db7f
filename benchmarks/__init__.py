"""Problems, comparison candidates and measurements; nothing here is shipped."""
