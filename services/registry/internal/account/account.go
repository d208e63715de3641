// Package account is service accounts: their secrets, roles and the check of a
// credential.
package account

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Account is a credential for a program.
type Account struct {
	ID          int64
	ProjectID   int64 // the project it was created in
	DisplayName string
	Username    string
	SecretHash  string // argon2id, PHC string format
	Role        int32  // role in ProjectID; the contract's numbers
	ExpireTime  time.Time
	CreateTime  time.Time
}

// Expired reports whether the account no longer works.
func (a Account) Expired(now time.Time) bool {
	return !a.ExpireTime.IsZero() && !now.Before(a.ExpireTime)
}

// New prepares an account with a fresh username and secret.
func New(a Account, now time.Time) (Account, string) {
	slug := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, a.DisplayName)
	a.Username = fmt.Sprintf("%s.%s.service-account", strings.Trim(slug[:min(len(slug), 30)], "-"), random(3))
	secret := random(20)
	a.SecretHash, a.CreateTime = hashSecret(secret), now
	return a, secret
}

// argon2id parameters: OWASP's second choice, 19 MiB and two passes.
const (
	argonTime    = 2
	argonMemory  = 19 * 1024
	argonThreads = 1
)

func hashSecret(secret string) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails (crypto/rand)
	key := argon2.IDKey([]byte(secret), salt, argonTime, argonMemory, argonThreads, 32)
	e := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonMemory, argonTime, argonThreads, e.EncodeToString(salt), e.EncodeToString(key))
}

func checkSecret(hash, secret string) bool {
	var version int
	var m, t uint32
	var p uint8
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[1] != "argon2id" {
		return false
	}
	if _, err := fmt.Sscanf(parts[2], "v=%d", &version); err != nil || version != argon2.Version {
		return false
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &m, &t, &p); err != nil {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(parts[4])
	want, err2 := base64.RawStdEncoding.DecodeString(parts[5])
	if err1 != nil || err2 != nil {
		return false
	}
	got := argon2.IDKey([]byte(secret), salt, t, m, p, uint32(len(want)))
	return subtle.ConstantTimeCompare(got, want) == 1
}

// Finder reads accounts.
type Finder interface {
	// AccountByUsername returns the account, or a NotFound fault.
	AccountByUsername(ctx context.Context, username string) (Account, error)
}

// Checker checks credentials. argon2id is slow on purpose, so a credential that
// was right is remembered for a short time, by a keyed hash of it; a revoked
// account is forgotten at once here, and after the time in other replicas.
type Checker struct {
	finder Finder
	now    func() time.Time
	key    []byte
	slots  chan struct{} // bounds memory and CPU that guessing can take

	mu   sync.Mutex
	seen map[string]remembered
}

type remembered struct {
	account Account
	until   time.Time
}

// cacheTime is how long a right credential is remembered.
const (
	cacheTime = time.Minute
	cacheSize = 10_000
)

// NewChecker makes a checker.
func NewChecker(f Finder, now func() time.Time) *Checker {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails (crypto/rand)
	return &Checker{finder: f, now: now, key: key, slots: make(chan struct{}, 2), seen: map[string]remembered{}}
}

// dummyHash makes an unknown user take as long as a wrong secret.
var dummyHash = sync.OnceValue(func() string { return hashSecret("none") })

var errWrong = fault.New(fault.Unauthenticated, "WRONG_CREDENTIAL", "the service account or its secret is wrong, or it has expired")

// Check returns the account of a right credential, else an Unauthenticated fault.
func (c *Checker) Check(ctx context.Context, username, secret string) (Account, error) {
	mac := hmac.New(sha256.New, c.key)
	mac.Write([]byte(username + "\x00" + secret))
	k := string(mac.Sum(nil))
	now := c.now()
	c.mu.Lock()
	r, ok := c.seen[k]
	c.mu.Unlock()
	if ok && now.Before(r.until) && !r.account.Expired(now) {
		return r.account, nil
	}
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return Account{}, ctx.Err()
	}
	a, err := c.finder.AccountByUsername(ctx, username)
	if fault.Is(err, fault.NotFound) {
		checkSecret(dummyHash(), secret)
		return Account{}, errWrong
	}
	if err != nil {
		return Account{}, err
	}
	if !checkSecret(a.SecretHash, secret) || a.Expired(now) {
		return Account{}, errWrong
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.seen) >= cacheSize {
		clear(c.seen)
	}
	c.seen[k] = remembered{a, now.Add(cacheTime)}
	return a, nil
}

// Forget drops what is remembered of an account.
func (c *Checker) Forget(id int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, r := range c.seen {
		if r.account.ID == id {
			delete(c.seen, k)
		}
	}
}

func random(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
