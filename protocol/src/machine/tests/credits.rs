//! Credits: grants, bonds, pay, forfeits; conservation.

use super::*;
use crate::ledger::{Award, Purpose, price_of_work};
use crate::limits::{DEFAULT_GRANTS_PER_HOUR, MAX_GRANTED_ACCOUNTS};
use crate::machine::credits::bond;
use crate::machine::disputes::dispute_work;

fn free(shell: &Shell, number: u8) -> u64 {
    shell.machine.ledger().free(&keys(number).id())
}

fn held(shell: &Shell) -> u64 {
    shell.machine.ledger().totals().held
}

const PRICE: u64 = WORK / 1_000_000;

#[test]
fn a_worker_gets_its_first_credits_once() {
    let mut shell = Shell::new();
    for _ in 0..3 {
        shell.feed(joined(1, 1));
    }
    shell.crash();
    shell.feed(joined(1, 1));
    assert_eq!(shell.postings, [Posting::Issue { to: keys(1).id(), amount: GRANT }]);
}

#[test]
fn a_lease_holds_a_bond_that_comes_back_with_the_pay() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    let spec = spec(1, NEVER);
    shell.feed(Input::Submit(spec.clone()));
    assert_eq!((held(&shell), free(&shell, 1)), (bond(&spec), GRANT - bond(&spec)));
    shell.run_right(0);
    assert_eq!((held(&shell), free(&shell, 1)), (0, GRANT + PRICE));
    assert_eq!(price_of_work(WORK), PRICE);
}

#[test]
fn the_bond_of_a_lease_that_ends_without_a_run_comes_back_without_pay() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec(1, NEVER)));
    shell.feed(Input::WorkerLeft { node: keys(1).id() });
    assert_eq!((held(&shell), free(&shell, 1)), (0, GRANT));
    shell.feed(joined(1, 1));
    assert!(held(&shell) > 0);
    // Nor is it lost where the coordinator goes down.
    shell.crash();
    assert_eq!((held(&shell), free(&shell, 1)), (0, GRANT));
}

#[test]
fn the_bond_of_a_run_that_stands_is_held_over_a_restart() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    let spec = spec(1, always(1, false));
    shell.feed(Input::Submit(spec.clone()));
    shell.run_right(0);
    shell.crash();
    assert_eq!(held(&shell), bond(&spec));
    shell.feed(joined(2, 1));
    shell.run_right(0);
    assert_eq!((held(&shell), free(&shell, 1), free(&shell, 2)), (0, GRANT + PRICE, GRANT + PRICE));
}

#[test]
fn who_has_not_the_credits_gets_no_lease() {
    let mut shell = Shell::new();
    let spec = spec(1, NEVER);
    shell.machine = Machine::new(Config { grant: bond(&spec) - 1, ..config() });
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(spec.clone()));
    assert!(shell.assigned.is_empty());
    shell.machine = Machine::new(Config { grant: bond(&spec), ..config() });
    shell.feed(joined(1, 2));
    shell.feed(Input::Submit(spec.clone()));
    shell.feed(Input::Submit(JobSpec { job: Arc::new(job(2)), ..spec }));
    assert_eq!(shell.assigned.len(), 1, "there is no second bond");
    shell.run_right(0);
    assert_eq!(shell.assigned.len(), 1, "now there is");
}

#[test]
fn a_refuted_run_loses_its_bond_and_pays_what_the_dispute_cost_the_other_side() {
    let mut shell = Shell::new();
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    let spec = spec(1, always(1, false));
    shell.feed(Input::Submit(spec.clone()));
    let honest = shell.assigned[0].0;
    shell.run_right(0);
    let (cheat, epoch, _) = shell.assigned[0].clone();
    shell.run_wrong(0);
    let cost = price_of_work(dispute_work(WORK, LAYERS));
    let purpose = Purpose::Lease { job: job(1).id(), epoch };
    let awards = vec![Award { to: honest, amount: cost }];
    assert!(shell.postings.contains(&Posting::Forfeit { node: cheat, purpose, awards }));
    assert!(cost > 0 && cost <= bond(&spec));
    assert_eq!(shell.machine.ledger().totals().burned, bond(&spec) - cost);
    shell.feed(joined(3, 1));
    shell.run_right(0);
    assert_eq!(held(&shell), 0);
    let is_paid = |posting: &Posting| matches!(posting, Posting::Pay { to, .. } if *to == cheat);
    assert!(!shell.postings.iter().any(is_paid));
}

#[test]
fn where_both_lose_nobody_is_awarded_anything() {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    let spec = spec(1, always(1, false));
    shell.feed(Input::Submit(spec.clone()));
    shell.run_wrong(0);
    shell.run_wrong(0);
    shell.end_dispute([true, true], VerdictKind::Proven);
    assert_eq!(shell.machine.ledger().totals().burned, 2 * bond(&spec));
}

#[test]
fn a_failed_job_gives_bonds_back_and_pays_nobody() {
    let mut shell = Shell::new();
    shell.judges = false;
    (1..=2).for_each(|number| drop(shell.feed(joined(number, 1))));
    shell.feed(Input::Submit(spec(1, always(1, false))));
    shell.run_right(0);
    shell.run_wrong(0);
    shell.end_dispute([false, false], VerdictKind::Proven);
    assert_eq!((held(&shell), free(&shell, 1), free(&shell, 2)), (0, GRANT, GRANT));
}

#[test]
fn a_bond_outweighs_what_an_undetected_lie_earns() {
    for per_mille in [0, 1, 10, 100, 500, 999, 1_000] {
        let spec = spec(1, AuditPolicy { per_mille, ..NEVER });
        let caught = u64::from(per_mille.max(1));
        assert!(bond(&spec) * caught >= PRICE * (1_000 - caught), "{per_mille}");
        assert!(bond(&spec) >= price_of_work(dispute_work(WORK, LAYERS)));
    }
}

#[test]
fn a_job_whose_bond_has_no_number_is_given_to_nobody() {
    let mut shell = Shell::new();
    shell.feed(joined(1, 1));
    shell.feed(Input::Submit(JobSpec { work: Work::fixed(u64::MAX), ..spec(1, NEVER) }));
    assert!(shell.assigned.is_empty());
}

/// A worker of any number joins, and leaves again.
fn visit(shell: &mut Shell, number: usize) -> NodeId {
    let mut bytes = [0xee; 32];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    let node = NodeId::from_bytes(bytes);
    let capabilities =
        Capabilities { macs_per_second: 0, max_in_flight: 1, models: Vec::new(), operator: None, pipeline: None };
    shell.feed(Input::WorkerJoined { node, capabilities });
    node
}

#[test]
fn so_many_new_keys_get_credits_in_an_hour_and_the_next_in_the_next_hour() {
    let mut shell = Shell::new();
    for number in 0..DEFAULT_GRANTS_PER_HOUR as usize {
        let node = visit(&mut shell, number);
        shell.feed(Input::WorkerLeft { node });
    }
    let late = visit(&mut shell, DEFAULT_GRANTS_PER_HOUR as usize);
    assert_eq!(shell.machine.ledger().account(&late), None, "no account before a grant");
    shell.feed(Input::Heartbeat { node: late });
    assert_eq!(shell.machine.ledger().account_count(), DEFAULT_GRANTS_PER_HOUR as usize);
    for _ in 0..60 * 60 {
        shell.wait(1_000);
        shell.feed(Input::Heartbeat { node: late });
    }
    assert_eq!(shell.machine.ledger().free(&late), GRANT);
}

#[test]
fn so_many_accounts_are_opened_in_all() {
    let mut shell = Shell::new();
    for number in 0..MAX_GRANTED_ACCOUNTS {
        let mut bytes = [0xdd; 32];
        bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
        shell.postings.push(Posting::Issue { to: NodeId::from_bytes(bytes), amount: 1 });
    }
    shell.crash();
    let node = visit(&mut shell, 1);
    assert_eq!(shell.machine.ledger().account(&node), None);
}
