"""Go's Client and Transport: the outbound half."""
