// Package e2e drives the whole system from outside, as its users do: real
// processes, Mixpanel's official clients, the sandbox as CleverTap.
package e2e
