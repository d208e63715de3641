// Package faults kills cohortbridge at random moments and looks at what is left.
package faults
