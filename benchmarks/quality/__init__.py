"""Every method and rival on the same networks, at every tolerance."""
