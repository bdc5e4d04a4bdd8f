"""What can be said of a thousand workers without them: a simulated fleet, and the driver's planning, measured."""
