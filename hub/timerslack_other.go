//go:build !linux

package main

// coalesceTimers does nothing: only Linux can be told.
func coalesceTimers() {}
