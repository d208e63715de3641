package cohortsync

import (
	"errors"
	"fmt"
	"net/url"
	"time"
)

// Config is what an operator may set. Default returns the values used when
// nothing is set; Validate says what does not fit.
type Config struct {
	// DataDir is where the service keeps its databases; one process at a time.
	DataDir string `yaml:"data_dir"`
	// Lease is how long a run belongs to a process without a renewal: after a
	// crash of another replica its runs are taken over after that. 1 s to 1 min.
	Lease time.Duration `yaml:"lease"`
	// Workers is how many runs are worked on at once, 1 to 1,000.
	Workers int `yaml:"workers"`
	// AccountConcurrency lowers the calls in flight to one CleverTap account; 0
	// means what CleverTap allows (15 uploads or partner pages, 3 others).
	AccountConcurrency int `yaml:"account_concurrency"`
	// MaxBatchUsers lowers the users in one call; 0 means what the channel allows
	// (1,000, API segments 100).
	MaxBatchUsers int `yaml:"max_batch_users"`
	// CallTimeout bounds one call to CleverTap.
	CallTimeout time.Duration `yaml:"call_timeout"`
	// PartnerURL is where the partner channel's messages go when the connector has no URL of its own.
	PartnerURL string `yaml:"partner_url"`
	// AllowPrivateDestinations lets connectors reach private and loopback
	// addresses, as the sandbox's.
	AllowPrivateDestinations bool `yaml:"allow_private_destinations"`
	// RetryTries and RetryBudget are how often and how long a batch is tried
	// that ends in 5xx or without an answer; RetryBackoff is the longest first
	// wait, doubled up to RetryMaxBackoff.
	RetryTries      int           `yaml:"retry_tries"`
	RetryBudget     time.Duration `yaml:"retry_budget"`
	RetryBackoff    time.Duration `yaml:"retry_backoff"`
	RetryMaxBackoff time.Duration `yaml:"retry_max_backoff"`
	// ThrottleBackoff is the longest first wait after a refusal for load (429),
	// ThrottleBudget how long one batch is patient with a busy account.
	ThrottleBackoff time.Duration `yaml:"throttle_backoff"`
	ThrottleBudget  time.Duration `yaml:"throttle_budget"`
	// GuardMinMembers and GuardMaxRemovedShare hold a run back that would remove
	// more than that share, 0 to 1, of a segment of more than so many.
	GuardMinMembers      uint64  `yaml:"guard_min_members"`
	GuardMaxRemovedShare float64 `yaml:"guard_max_removed_share"`
	// MaxMembers is the largest cohort that is exported.
	MaxMembers uint64 `yaml:"max_members"`
	// MaxDynamicSyncs is how many a project may have.
	MaxDynamicSyncs int `yaml:"max_dynamic_syncs"`
	// DefaultInterval is between runs of a dynamic sync that gives none.
	DefaultInterval time.Duration `yaml:"default_interval"`
	// SnapshotLife is how long without a confirmed run what was sent is trusted to be there still.
	SnapshotLife time.Duration `yaml:"snapshot_life"`
	// KeepRuns is how many runs of a sync keep what happened to each user.
	KeepRuns int `yaml:"keep_runs"`
	// Poll is how often jobs are looked for.
	Poll time.Duration `yaml:"poll"`
	// Now is the clock; nil means time.Now.
	Now func() time.Time `yaml:"-"`
}

// Default is a config with everything set but DataDir.
func Default() Config {
	return Config{
		Lease: 5 * time.Second, Workers: 64, CallTimeout: time.Minute,
		RetryTries: 5, RetryBudget: time.Minute, RetryBackoff: time.Second, RetryMaxBackoff: 20 * time.Second,
		ThrottleBackoff: time.Second, ThrottleBudget: 10 * time.Minute,
		GuardMinMembers: 1000, GuardMaxRemovedShare: 0.5,
		MaxMembers: 10_000_000, MaxDynamicSyncs: 60, DefaultInterval: 15 * time.Minute,
		SnapshotLife: 72 * time.Hour, KeepRuns: 50, Poll: 50 * time.Millisecond,
	}
}

// Validate returns all that is wrong, each with its setting's name.
func (c Config) Validate() error {
	var errs []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	need(c.DataDir != "", "data_dir is required")
	need(c.Lease >= time.Second && c.Lease <= time.Minute, "lease: want 1s to 1m, not %s", c.Lease)
	need(c.Workers >= 1 && c.Workers <= 1000, "workers: want 1 to 1000, not %d", c.Workers)
	need(c.AccountConcurrency >= 0, "account_concurrency: can't be negative")
	need(c.MaxBatchUsers >= 0, "max_batch_users: can't be negative")
	need(c.CallTimeout > 0, "call_timeout: must be positive")
	need(c.RetryTries >= 1, "retry_tries: want at least 1")
	for name, d := range map[string]time.Duration{"retry_budget": c.RetryBudget, "retry_backoff": c.RetryBackoff, "retry_max_backoff": c.RetryMaxBackoff,
		"throttle_backoff": c.ThrottleBackoff, "throttle_budget": c.ThrottleBudget, "snapshot_life": c.SnapshotLife} {
		need(d > 0, "%s: must be positive", name)
	}
	need(c.GuardMaxRemovedShare > 0 && c.GuardMaxRemovedShare <= 1, "guard_max_removed_share: want above 0 to 1, not %v", c.GuardMaxRemovedShare)
	need(c.MaxMembers > 0, "max_members: must be positive")
	need(c.MaxDynamicSyncs > 0, "max_dynamic_syncs: must be positive")
	need(c.DefaultInterval >= time.Minute && c.DefaultInterval <= 24*time.Hour, "default_interval: want 1m to 24h")
	need(c.KeepRuns >= 1, "keep_runs: want at least 1")
	need(c.Poll >= 2*time.Millisecond, "poll: want at least 2ms")
	if c.PartnerURL != "" {
		u, err := url.Parse(c.PartnerURL)
		need(err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https"), "partner_url: want an http or https URL")
	}
	return errors.Join(errs...)
}
