"""What a training would take, before it starts: time, memory, disk, money."""
