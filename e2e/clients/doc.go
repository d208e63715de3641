// Package clients drives Mixpanel's JavaScript clients against cohortbridge.
package clients
