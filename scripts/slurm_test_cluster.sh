#!/usr/bin/env bash
# A real Slurm on this one machine, to try and to test with: munged, slurmctld and a slurmd for each of a few virtual nodes.
#   bash scripts/slurm_test_cluster.sh start     install Debian's packages if they are missing (as root), start, wait until it takes jobs
#   eval "$(bash scripts/slurm_test_cluster.sh env)"    so that sbatch, squeue and rwkv find it
#   ... down NODE      a node loses its power, with all that runs on it; back once Slurm has noticed
#   ... up NODE        it comes back
#   ... stop           end this cluster's daemons, and no others
# All of it is in $SLURM_TEST_DIR (/tmp/slurm-test); nothing outside is touched. NODES (4), CPUS (2, of each node), PORT (17000 and those after it).
# Two partitions: main, whose jobs give way to those of high after a grace time, and are requeued.
set -euo pipefail
dir=${SLURM_TEST_DIR:-/tmp/slurm-test} nodes=${NODES:-4} cpus=${CPUS:-2} port=${PORT:-17000} grace=${GRACE:-20}
export SLURM_CONF=$dir/slurm.conf

fail() { echo "slurm_test_cluster: $*" >&2; exit 3; }

packages() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || [ -x "/usr/sbin/$program" ] || missing=1
    done
    [ -z "${missing:-}" ] && return
    command -v apt-get >/dev/null || fail "Slurm is not installed, and there is no apt-get to do it"
    [ "$(id -u)" = 0 ] || fail "Slurm is not installed; as root this script installs slurm-wlm and munge"
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } >"$dir/apt.log" 2>&1 || fail "apt-get failed: $(tail -n 1 "$dir/apt.log")"
}

configure() {
    [ "$(id -u)" = 0 ] || fail "only root can run jobs for others: start it as root"
    mkdir -p "$dir"/{munge,state,log,run,gpus}
    chmod 711 "$dir/munge"
    [ -s "$dir/munge/key" ] || (umask 077; head -c 256 /dev/urandom >"$dir/munge/key")
    for i in $(seq "$nodes"); do mkdir -p "$dir/spool/n$i"; done
    for i in $(seq 0 $((cpus - 1))); do : >"$dir/gpus/gpu$i"; done  # empty files stand for GPUs
    echo "Name=gpu File=$dir/gpus/gpu[0-$((cpus - 1))]" >"$dir/gres.conf"
    cat >"$SLURM_CONF" <<EOF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
AuthType=auth/munge
CredType=cred/munge
# a requeued job is held until its old credential is void: 120 s if nothing is said here
AuthInfo=socket=$dir/munge/socket,cred_expire=5
# processes are found by their parents: neither cgroups nor a database are needed
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=6
KillWait=3
MinJobAge=3600
# preemption: the job's own signal (--signal) if it has one, else TERM; KILL after the grace time
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=n[1-$nodes] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + nodes))] CPUs=$cpus RealMemory=4000 Gres=gpu:$cpus
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=$grace MaxTime=120 DefaultTime=10
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=120 DefaultTime=10
EOF
}

# lives FILE NAME: whether the process of a pid file runs and is that program; pids are used again
lives() { [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]; }

node_up() { lives "$dir/run/$1.pid" slurmd || slurmd -N "$1" >>"$dir/log/$1.out" 2>&1 || fail "slurmd $1: $(tail -n 2 "$dir/log/$1.log")"; }

# of_node NODE: the processes of jobs on it: step daemons, which have its log open, and tasks, which have its name in their environment
of_node() {
    for proc in /proc/[0-9]*; do
        if { [ "$(cat "$proc/comm" 2>/dev/null)" = slurmstepd ] && ls -l "$proc/fd" 2>/dev/null | grep -q " $dir/log/$1.log$"; } ||
            { tr '\0' '\n' <"$proc/environ" | grep -qx "SLURMD_NODENAME=$1" && tr '\0' '\n' <"$proc/environ" | grep -qx "SLURM_CONF=$SLURM_CONF"; } 2>/dev/null; then
            echo "${proc#/proc/}"
        fi
    done
}

# as a machine does that loses its power: all is silent at once, nobody says so; after a while Slurm takes it for dead
node_down() {
    lives "$dir/run/$1.pid" slurmd && kill -9 "$(cat "$dir/run/$1.pid")"
    frozen=$(of_node "$1")
    [ -z "$frozen" ] || kill -STOP $frozen
    for i in $(seq 100); do
        sinfo -h -N -n "$1" -p main -o %T | grep -q down && break
        sleep 0.3
    done
    [ -z "$frozen" ] || kill -9 $frozen 2>/dev/null || true
}

start() {
    mkdir -p "$dir" && chmod 755 "$dir"
    packages
    PATH=$PATH:/usr/sbin
    configure
    lives "$dir/munge/pid" munged || munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed" 2>>"$dir/log/munged.out" || fail "munged: $(tail -n 2 "$dir/log/munged.log")"
    lives "$dir/run/slurmctld.pid" slurmctld || slurmctld >>"$dir/log/slurmctld.out" 2>&1 || fail "slurmctld: $(tail -n 2 "$dir/log/slurmctld.log")"
    for i in $(seq "$nodes"); do node_up "n$i"; done
    for i in $(seq 100); do
        [ "$(sinfo -h -N -p main -t idle,mix,alloc -o %N 2>/dev/null | wc -l)" = "$nodes" ] && return
        sleep 0.3
    done
    fail "the nodes did not come up; see $dir/log"
}

stop() {
    for pair in "$dir"/run/n*.pid=slurmd "$dir/run/slurmctld.pid=slurmctld" "$dir/munge/pid=munged"; do
        for file in ${pair%=*}; do lives "$file" "${pair#*=}" && kill "$(cat "$file")" || true; done
    done
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    down) node_down "$2" ;;
    up) PATH=$PATH:/usr/sbin node_up "$2" ;;
    env) echo "export SLURM_CONF=$SLURM_CONF" ;;
    *) sed -n '2,9s/^# \?//p' "$0"; exit 2 ;;
esac
