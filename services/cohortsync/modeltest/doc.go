// Package modeltest holds the sync engine against a small, obvious model: random
// histories of memberships, identifiers, profiles, faults, kills and cancels, after
// which the segments at the destination must be the cohorts, and every report must
// have told the truth on the way. The engine runs as a process of its own, which is
// killed with SIGKILL.
package modeltest
