"""A search on Ray Tune: Tune schedules trials and stops them; what is known of the search is in its folder."""
