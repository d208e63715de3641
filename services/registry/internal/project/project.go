// Package project is what a project is: its identifiers and settings.
package project

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"
)

// Identity is the identity system of a project.
type Identity int

// The identity systems; the numbers are stored and equal the contract's.
const (
	Simplified Identity = 1
	Original   Identity = 2
	Legacy     Identity = 3
)

// DefaultSource is the `$source` value accepted as CleverTap's unless configured.
const DefaultSource = "clevertap"

// Project is the unit of isolation.
type Project struct {
	ID               int64
	DisplayName      string
	Token            string
	Identity         Identity
	MatchByNameOnly  bool
	CleverTapSources []string
	ByEventTime      bool
	// PartnerMarkers are marker values by MTU rule, in place of the rule's own.
	PartnerMarkers map[string][]string
	CreateTime     time.Time
	Version        int64
}

// New prepares a project with a fresh token and fills its defaults. The second
// result is the project secret, of which only Hash is stored.
func New(p Project, now time.Time) (Project, string) {
	p.Token, p.CreateTime, p.Version = random(16), now, 1
	p.Defaults()
	return p, random(16)
}

// Defaults fills what was left open.
func (p *Project) Defaults() {
	if p.Identity == 0 {
		p.Identity = Simplified
	}
	if len(p.CleverTapSources) == 0 {
		p.CleverTapSources = []string{DefaultSource}
	}
	for i, s := range p.CleverTapSources {
		p.CleverTapSources[i] = strings.ToLower(strings.TrimSpace(s))
	}
}

// Hash is how a project secret is stored. The secret is 128 random bits, so a
// fast hash is enough and lookups by it stay cheap.
func Hash(secret string) string {
	s := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(s[:])
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
